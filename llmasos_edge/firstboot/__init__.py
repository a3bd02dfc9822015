"""First boot of the image: makes a card, the same for everyone, the machine of its owner."""
