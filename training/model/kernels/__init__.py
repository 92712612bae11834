"""The same step, one module a way of computing it. ``reference`` is the definition; the others must agree with it.

The contract, for a batch (center_B, contexts_negatives_BL, num_contexts_B) and the tables (center_VD, context_VD):

``row_losses(*batch, *tables, negatives) -> losses_B``: their sum can be differentiated by both tables.
``InPlace(*tables, negatives, adagrad)``: trains the tables in place, row after row, by ``update(*batch, lr) ->
losses_B``, but for the rows of words in ``frozen_V``. It may work on copies: ``push`` writes them into the tables,
``pull`` takes what was changed there; ``accumulators`` are Adagrad's, ``team`` its threads, if they are our own.

Adam in machine code, lazy_adam.py, is beside this: it knows gradients and optimizer both.
"""
