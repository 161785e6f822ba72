"""The registry of methods: method.name -> class."""
from models.dexml import Dexml
from models.ova import Ova

METHODS = {"dexml": Dexml, "ova": Ova}
METHOD_CONFIGS = {name: method.Config for name, method in METHODS.items()}
