"""Guests that run before they are wanted: `kata-runtime factory serve` keeps processes, each with a clone of its own.

Such a process waits for what a start would have done: `kata-runtime run` hands over what it was asked, and its files,
and the process does it. So a clone need never change hands, and whoever takes one has a process whose imports are done
as well.

wire     the messages
client   takes a process, for those who start
server   keeps as many as are wanted, and hands them over

One of them is `kata_runtime.member`, which is above all that a start may be.
"""
