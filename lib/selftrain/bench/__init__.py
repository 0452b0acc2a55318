"""The bench: a plain baseline against this project on the same work, in one run, with a floor beside every number. See __main__."""
