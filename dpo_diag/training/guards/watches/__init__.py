"""One file per thing that is watched; each registers with `WATCHES.add(code, Class)`."""
