"""Code that all formats share: files, output folders, the hub, and text for a terminal."""
