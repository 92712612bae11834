"""Where sequences come from, and how text becomes word ids."""
