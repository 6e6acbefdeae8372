"""The only code that touches ComfyUI's internals, the same for both engines. ComfyUI is imported inside functions.

engine      get(name) -> module; load_models(models); encode(clip, text) -> CONDITIONING;
            Progress(total, model=None): .tick(n=1, x0=None) (progress + preview + interrupt), .value, .total;
            check_interrupt(); Interrupted() -> exception class; process_of(model) -> VE | FLOW;
            latent_in(model, samples), latent_out(model, x): LATENT scale <-> model space;
            check_latent(model, latent) -> samples [B, C, ...]; sigmas_of(model, scheduler, steps) -> SIGMAS;
            sigma_range(model) -> (min, max); schedulers();
            folder(kind), full_path(kind, name), cache_folder(): inside ComfyUI's own folders, `..` refused
gradients   grad_mode(*modules, checkpoint=False): context in which weights are normal tensors on their own storage;
            normal(tensor or nested) -> ordinary copies of inference tensors; check_differentiable(*modules)
denoiser    sample_with(model, conds, latent, sigmas, body, *, total=1, seed=0, mask=None) -> what body(run) returns
            conds {"positive": CONDITIONING, "negative": ..., any other name: ...}; latent: LATENT samples [B, C, ...];
            body runs inside a sampling run of the engine: models, conditions, hooks, control nets ready, cleaned up
            after errors and interrupts too. Run:
              .model (BaseModel) .process (VE | FLOW) .latent (x0, model space, fp32, on the device) .sigmas .device
              .sigma_min .sigma_max .progress .calls .tick(n) .callback(dict) (k-diffusion's: drives the preview)
              .predictions(x, sigma, names) -> [D, ...]: one batched call, no CFG; names or processed condition lists
              .denoiser("positive") -> Denoise as at cfg 1; .guided("positive", "negative", cfg) -> Denoise by the
              engine's own CFG and its patches; .embedding_net("negative") -> net(x, sigma, embedding [B, T, D]) -> D,
              differentiable inside `with run.gradients(checkpoint=False):` (pooled, control nets, areas are kept)
sampler     own_sampler(function, *, start=None, known=None, holds_mask=False, **options) -> SAMPLER without noise
              scaling of function(denoise, x, sigmas, *, process, noise, callback, **options) -> x (tick= if it takes
              one); x = start (model space) or the engine's own scaled noise; noise masks honoured at every call, with
              known(sigma) -> what stands outside the mask; holds_mask: the function is given mask= and source= and
              composites itself
            k_sampler(function, **options) -> SAMPLER with the engine's scaling (function in k-diffusion's signature);
            core_sampler(name) -> SAMPLER; sampler_name(sampler) -> str; is_euler(sampler) -> bool
guider      guider_class() -> CFGGuider subclass to derive from:
              .predict(x, timestep, names, model_options) -> [D, ...]
              .combine(cond, uncond, cfg, x, timestep, model_options) -> D through the model's CFG patches
              .predict_noise(x, timestep, model_options, seed) to override
            replace_embedding(processed conditions, embedding) -> processed conditions
noise       InversionNoise(inversion): NOISE that yields x_T under the engine's own noise scaling
fingerprint fingerprint(model) -> dict[str, str]; difference(saved, now) -> sentence naming what differs, or None
report      text_result(text, *outputs) -> {"ui": {"text": [text]}, "result": outputs}
record      check_belongs(inversion, model), source_conditioning(inversion), prompts(inversion, positive, negative, cfg)
invert      invert(...) -> (INVERSION, from the cache?), replay(...) -> Result;
            null_text: optimise(...); direct: edit(...)
store       find_file(name), read(path), cache_key(model, *inputs), find(key), keep(key, inversion)
words       with_words(conditioning, clip, text), words_of(conditioning) -> list[dict] | None: format in the file
family      register() -> bool: the demo model's family and folder; unknown_words(clip, text) -> list[str]
attention   unet_places(model) -> the cross-attention blocks; attach(model, edits, kinds) -> clone whose layers ask the
              controllers (refuses joint-attention models and layers of other patches); prompts_of(conditioning, what)
rows        PairEdit(controller), WordEdit(controller, conditioning), Capture(record, conditioning)
prompt_to_prompt  prompt_to_prompt_guider(model, source, edits, negative, cfg, controllers, *, inversion=None,
              keep_source=False) -> GUIDER; run_guider(guider, latent, sigmas, seed) -> edits, source, rows, seconds
vision      vision_features(clip_vision, images), text_embedding(conditioning, image)
routes      server addresses
"""
