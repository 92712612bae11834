"""The same step, one module a way of computing it. ``reference`` is the definition; the others must agree with it.

The contract, for a batch (center_B, contexts_negatives_BL, num_contexts_B) and the tables (center_VD, context_VD):

``row_losses(*batch, *tables, negatives) -> losses_B``: their sum can be differentiated by both tables.
``update(*batch, *tables, negatives, lr, accumulators) -> losses_B``: trains the tables in place, row after row, but for
the rows of words in ``frozen_V``.
"""
