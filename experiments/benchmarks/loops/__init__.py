"""One script for each library: the training loop of its own documentation, run in a process of its own.

Python runs this file before a script's own imports, so that the clock below measures them.
"""

import time

STARTED = time.perf_counter()
