"""A table of pictures through a workflow, on as many ComfyUI servers as there are machines for: Ray Data, and nothing
of the pack. Only this package starts servers; the pack inside ComfyUI never imports it."""
