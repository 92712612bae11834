"""How good vectors are: on questions with known answers, and on lines that no model was trained on."""
