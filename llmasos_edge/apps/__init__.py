"""The applications: declarative programs that make a prompt of a message or a text, and publish the answer."""
