"""The same step, one module for each way to compute it. ``reference`` is the definition, and the others agree with it.

A module offers a function and a class; ``steps.kernel_of`` lists both:

``row_losses(batch, tables, negatives) -> losses_B``: autograd can differentiate their sum by both tables.
A subclass of ``reference.InPlaceTrainer``: ``update(batch, lr) -> losses_B`` trains the tables in place, row after row,
by any optimizer in ``IN_PLACE`` of training/train_config.py.

``reference`` and ``cuda`` know nothing of other ranks, but for a function ``add_up`` that replaces a rank's shares of
scores by their sums: ranks that share the columns pass it (``columns.OwnColumns``). ``cpu`` meets the others itself.

batch = (center_B, contexts_negatives_BL, num_contexts_B) and tables = (center_VD, context_VD).

Adam in machine code, lazy_adam.py, stands outside this contract, because it computes gradients and optimizer together.
"""
