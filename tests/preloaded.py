"""What the server of `tests/commands.py` imports before it forks. No thread may start here."""

# ruff: noqa: F401
import sklearn.ensemble
import torch._dynamo
import torch.utils.tensorboard
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

import elias_utils
import eval
import models.conformance.checks
import models.elias_steps
import models.evaluator
import models.predictor
import models.trainer
import predict
import tests.distributed_worker
import tests.reading.malformed_targets
import train
