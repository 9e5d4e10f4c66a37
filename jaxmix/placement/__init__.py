"""Where a site's tensors lie in a params tree: the only room that knows."""
