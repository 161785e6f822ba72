"""Run under `accelerate launch`: trains and evaluates each config given, one after the other, in one process group."""
import sys

from eval import evaluate
from models import METHOD_CONFIGS
from train import fit
from utils.config import load_config

if __name__ == "__main__":
    for path in sys.argv[1:]:
        evaluate(fit(load_config(path, method_configs=METHOD_CONFIGS)))
