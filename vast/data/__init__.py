"""The data path: the order of samples, how frames are drawn, decoded and augmented, and how readers deliver them."""
