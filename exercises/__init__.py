"""The paper's equations as blanks to fill in, and a grader that proves the answers.

`python -m exercises` lists them. `python -m exercises start` writes `my_ddpm/`, a copy
of the paper's modules with the bodies of some functions blank; `check` holds what is
written there to the laws of its equation and names the published mistakes it knows.
"""
