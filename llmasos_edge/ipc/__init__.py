"""The rooms that talk: MQTT topics, messages and connection, the managed broker, and the control socket."""
