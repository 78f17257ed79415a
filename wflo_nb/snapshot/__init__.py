"""Variables of a mapping, saved and brought back: partition, serialise, chunk, sign, plan, swap.

- `engine`: take, restore, plan, diff, undo: the room's front door
- `image`: the state of a namespace as components of bytes
- `plan`: what a restore will do, and the step in which it does it
- `partition`: which variables share a mutable object and so belong together
- `reducers`: how objects become bytes; what is kept by reference instead
- `ties`: which objects are tied to this process
- `rebuild`: how bytes become objects again
- `memory`: which arrays and views share which stretch of memory
- `references`: objects kept by reference in this process, and the stubs that stand in elsewhere
- `credentials`: what must never reach the bytes
- `chunks`: cutting, hashing, compressing
- `manifest`: the signed description of a snapshot
- `signing`: the key, kept outside the database
- `records`: what users are shown
"""
