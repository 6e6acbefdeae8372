"""The only code that touches ComfyUI's internals, the same for both engines. ComfyUI is imported inside functions.

engine      get(name) -> module; core_nodes(); load_models(models); encode(clip, text) -> CONDITIONING;
            Progress(total, model=None): .tick(n=1, x0=None) (progress + preview + interrupt), .value, .total;
            check_interrupt(); Interrupted() -> exception class; process_of(model) -> VE | FLOW;
            latent_in(model, samples), latent_out(model, latent): LATENT scale <-> model space;
            check_latent(model, latent) -> samples [B, C, ...]; sigmas_of(model, scheduler, steps); sigma_range(model) -> (min, max);
            schedulers(); folder(kind), full_path(kind, name), cache_folder(): inside ComfyUI's own folders, `..` refused
gradients   grad_mode(*modules, checkpoint=False): context; weights become normal tensors on the same storage, put back after;
            normal(tensor or nested) -> ordinary copies of inference tensors; check_differentiable(*modules)
denoiser    sample_with(model, conds, latent, sigmas, body, *, total=None, seed=0, mask=None) -> whatever body returns
              model MODEL; conds {"positive": CONDITIONING, "negative": CONDITIONING, any other name ...}; latent: LATENT samples [B, C, ...];
              body(run): runs inside a real sampling run of the engine (models loaded, conditions, hooks and control nets ready,
              cleaned up on error and interrupt)
            Run: .model (BaseModel), .process (VE | FLOW), .latent (x0 in model space, fp32, on the device), .sigmas, .device,
              .sigma_min, .sigma_max, .progress, .tick(), .callback(dict) (k-diffusion's, drives progress and preview),
              .predictions(x, sigma, names) -> [D, ...] in one batched call, no CFG; names may be condition lists too,
              .denoiser("positive") -> Denoise, no CFG; .guided("positive", "negative", cfg) -> Denoise through the engine's own CFG
              function and its patches; .embedding_net("negative") -> net(x, sigma, embedding [B, T, D]) -> D, differentiable in
              all three inside `with run.gradients():` (pooled vectors, control nets and areas of the condition kept)
sampler     own_sampler(function, *, start=None, known=None, **options) -> SAMPLER without noise scaling:
              function(denoise, x, sigmas, *, process, noise, callback, tick, **options) -> x, x = start (model space) or the engine's own
              scaled noise; denoise masks honoured, `known(sigma) -> x` says what stands outside the mask;
            k_sampler(function, **options) -> SAMPLER with the engine's scaling (function in k-diffusion's signature);
            core_sampler(name) -> SAMPLER; deterministic(sampler) -> bool; sampler_name(sampler) -> str | None
guider      guider_class() -> CFGGuider subclass to derive from: .predict(x, sigma, conds, model_options) -> [D, ...], .combine(cond, uncond,
              cfg, x, sigma, model_options) -> D through CFG patches, .predict_noise(x, timestep, model_options, seed) to override;
            null_text_guider(model, positive, inversion, negative) -> GUIDER
noise       InversionNoise(inversion): NOISE that yields x_T under the engine's own noise scaling; SeededNoise(seed)
fingerprint fingerprint(model) -> dict[str, str]; difference(saved, now) -> sentence naming what differs, or None
report      text_result(text, *outputs) -> {"ui": {"text": [text]}, "result": outputs}
words       the words a CONDITIONING of the Prompt node carries: with_words(conditioning, clip, text), words_of(conditioning) -> list[dict] | None
attention   (layer hooks)   family (the demo model's family)   routes (server addresses)
"""
