"""Methods, each in the room of its kind; `utils.config.methods` knows them by name."""
