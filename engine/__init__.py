"""The only code that touches ComfyUI, the same for both engines: it is imported inside functions, never at the top."""
