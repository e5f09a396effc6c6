"""Real data in, arrays out.

Two datasets of handwritten digits as the same value, `Dataset`: `load_digits` needs no download, `load_mnist` reads
the four IDX files of a directory. `read_idx` reads any IDX file. `Shards` maps a data set that is larger than memory.
Loading needs NumPy only: the arrays reach a device with the first jitted call, where `Pixels` and `augment` work.
"""

from funcnn.data import augment as augment
from funcnn.data.dataset import Dataset as Dataset
from funcnn.data.digits import load_digits as load_digits
from funcnn.data.idx import DataError as DataError
from funcnn.data.idx import MissingDataError as MissingDataError
from funcnn.data.idx import read_idx as read_idx
from funcnn.data.mnist import data_dir as data_dir
from funcnn.data.mnist import load_mnist as load_mnist
from funcnn.data.prepare import Pixels as Pixels
from funcnn.data.shards import Shards as Shards
from funcnn.data.shards import write_shards as write_shards
