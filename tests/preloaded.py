"""What the server of `tests/commands.py` imports before it forks. No thread may start here."""

# ruff: noqa: F401
import sklearn.ensemble
import torch._dynamo
import torch.utils.tensorboard
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

import elias_utils
import engine.conformance.checks
import engine.elias_steps
import engine.evaluator
import engine.predictor
import engine.trainer
import eval
import predict
import tests.distributed_worker
import tests.reading.malformed_targets
import train
