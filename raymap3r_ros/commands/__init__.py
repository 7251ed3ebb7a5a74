"""One module per command of `raymap3r`, with its arguments (`add_arguments`) and its call (`run`).

`raymap3r_ros.cli` imports a module only when its command is used.
"""
