"""LyCORIS's families in the single files of other libraries: names, parameters, updates.

kohya's, LyCORIS's, diffusers' and ComfyUI's files hold the same factors under other names. The
names are each format's own (`adapters.kohya`, `adapters.diffusers`), what the
factors mean is here, once.
"""
