"""Networks that were trained elsewhere: their files, read into the trees of `zoo.nets`."""
