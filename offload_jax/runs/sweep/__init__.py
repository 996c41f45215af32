"""Sweeps: many trainings with settings of a sweep file, several at a time.

A sweep's directory holds `journal.log` (Optuna's record of the trials), `trials/N` (the run
directory of each, with its log `trials/N.log`), and what `report` writes in the end. Whatever is
killed, a training or the sweep itself, goes on where it was when the same command is given again.
"""
