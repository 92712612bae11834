"""The same step, one module a way of computing it. ``reference`` is the definition; the others must agree with it.

The contract: (center_B, contexts_negatives_BL, num_contexts_B, center_VD, context_VD, negatives) -> losses_B, whose sum
can be differentiated with respect to both tables.
"""
