"""`./run demo`: boots a node, asks it real questions over MQTT as any caller would, looks at it, and takes it down."""
