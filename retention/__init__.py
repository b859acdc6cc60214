"""Time passes: the tick that finds what is due today, and the jobs that others asked for."""
