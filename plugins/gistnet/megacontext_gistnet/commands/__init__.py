"""The commands of this plugin; each module is light and imports torch inside its function."""
