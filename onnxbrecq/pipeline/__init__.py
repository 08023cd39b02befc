"""The order of the stages: the only room that knows it, a module for each command.

`explore` holds two, `sensitivities` and `pareto`. All start with `onnxbrecq.preparation` and share
`decisions`, what is learned, and `results`, what comes of it; no command calls another.
"""
