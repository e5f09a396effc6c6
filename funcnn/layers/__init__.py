"""The layers, forward only. Each family's rules stand in `funcnn/backprop/rules/`, in the file of the same name."""

from funcnn.layers.activation import Absolute as Absolute
from funcnn.layers.activation import Activation as Activation
from funcnn.layers.activation import Elu as Elu
from funcnn.layers.activation import Gelu as Gelu
from funcnn.layers.activation import HardSwish as HardSwish
from funcnn.layers.activation import Identity as Identity
from funcnn.layers.activation import LeakyRelu as LeakyRelu
from funcnn.layers.activation import LogSoftmax as LogSoftmax
from funcnn.layers.activation import Prelu as Prelu
from funcnn.layers.activation import Relu as Relu
from funcnn.layers.activation import Sigmoid as Sigmoid
from funcnn.layers.activation import Silu as Silu
from funcnn.layers.activation import Softmax as Softmax
from funcnn.layers.activation import Softplus as Softplus
from funcnn.layers.activation import Step as Step
from funcnn.layers.activation import Swish as Swish
from funcnn.layers.activation import Tanh as Tanh
from funcnn.layers.dense import Dense as Dense
from funcnn.layers.feedback import FeedbackDense as FeedbackDense
from funcnn.layers.maxout import Maxout as Maxout
from funcnn.layers.noise import Dropout as Dropout
from funcnn.layers.noise import GaussianNoise as GaussianNoise
from funcnn.layers.rbf import Rbf as Rbf
from funcnn.layers.shape import Flatten as Flatten
from funcnn.layers.shape import Reshape as Reshape
