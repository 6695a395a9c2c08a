"""The watch: how long until an update matters, and who stands still."""
