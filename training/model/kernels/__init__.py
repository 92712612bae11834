"""The same step, one module for each way to compute it. ``reference`` is the definition, and the others agree with it.

The contract, with batch = (center_B, contexts_negatives_BL, num_contexts_B) and tables = (center_VD, context_VD):

``row_losses(batch, tables, negatives) -> losses_B``: autograd can differentiate their sum by both tables.
``InPlace(tables, negatives, adagrad)``: ``update(batch, lr) -> losses_B`` trains the tables in place, row after row,
except the rows of words in ``frozen_V``. A kernel may train copies: ``write_back`` copies them into the tables, and
``reload`` copies the tables again after they were changed. ``accumulators`` are Adagrad's; ``team`` is the kernel's
threads, or None.

Adam in machine code, lazy_adam.py, stands outside this contract, because it computes gradients and optimizer together.
"""
