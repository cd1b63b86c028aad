"""Small products run many times faster on one thread; a test that wants more sets them and puts one back."""

import torch

torch.set_num_threads(1)
