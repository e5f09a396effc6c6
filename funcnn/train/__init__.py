"""Training: compiled steps and epochs, many runs in one program, checkpoints, many devices."""

from funcnn.train.checkpoint import Checkpoints as Checkpoints
from funcnn.train.checkpoint import load_checkpoint as load_checkpoint
from funcnn.train.ensemble import Ensemble as Ensemble
from funcnn.train.errors import CheckpointError as CheckpointError
from funcnn.train.errors import DataStreamError as DataStreamError
from funcnn.train.errors import NonFiniteError as NonFiniteError
from funcnn.train.errors import TrainingError as TrainingError
from funcnn.train.fit import EarlyStopping as EarlyStopping
from funcnn.train.fit import accuracy as accuracy
from funcnn.train.fit import evaluate as evaluate
from funcnn.train.fit import fit as fit
from funcnn.train.history import History as History
from funcnn.train.kfac import kfac as kfac
from funcnn.train.kronecker import scale_by_kfac as scale_by_kfac
from funcnn.train.many import fit_many as fit_many
from funcnn.train.max_norm import max_norm as max_norm
from funcnn.train.placement import by_features as by_features
from funcnn.train.placement import fully_sharded as fully_sharded
from funcnn.train.steps import State as State
from funcnn.train.steps import start as start
from funcnn.train.steps import step as step
from funcnn.train.watch import Watch as Watch
