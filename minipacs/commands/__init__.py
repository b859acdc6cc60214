"""The commands of `minipacs`, a module each. Heavy imports happen inside the functions: `--help` answers at once."""
