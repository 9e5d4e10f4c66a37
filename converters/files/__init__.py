"""What all formats share: files, folders, the hub, and text for a terminal."""
