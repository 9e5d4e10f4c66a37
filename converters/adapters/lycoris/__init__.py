"""The factors in single files of kohya's scripts, LyCORIS, diffusers and ComfyUI.

These files have the same factors under different names. `adapters.kohya` and `adapters.diffusers`
know the names; this package knows what the factors mean.
"""
