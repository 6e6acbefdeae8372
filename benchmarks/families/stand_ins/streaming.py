"""A patcher like the one of newer engines whose weights are streamed to the graphics card."""


def streamed(model, devices, again):
    """A patcher that says it streams its weights, as newer engines' own does, which needs a graphics card: they are
    marked, and only the patcher of `clone(disable_dynamic=True)`, on the model of `again`, has others."""
    from comfy.model_patcher import ModelPatcher

    class Streamed(ModelPatcher):
        def is_dynamic(self):
            return True

        def clone(self, disable_dynamic=False, **more):
            if hasattr(ModelPatcher, "is_dynamic"):
                return super().clone(disable_dynamic, **more)
            other = super().clone()  # an engine that streams nothing
            other.__class__ = ModelPatcher if disable_dynamic else Streamed
            if disable_dynamic:
                fresh = ModelPatcher(again(), *devices)
                other.model, other.backup, other.object_patches_backup = fresh.model, {}, {}
            return other

        def loaded_ram_size(self):
            return 0

        def set_in_use_by_current_prompt(self, in_use):
            pass

    for module in model.modules():
        if module._parameters:
            module._v = (0, 0, 0)
    model.dynamic_pins = {devices[0]: {"active": False}}
    made = Streamed(model, *devices)
    made.cached_patcher_init = (lambda disable_dynamic=False: ModelPatcher(again(), *devices), ())
    return made
