"""The command `doctor`: examines what a run needs, and says what to mend."""
