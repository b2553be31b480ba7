"""ttrpc, the RPC protocol between containerd and its shims (containerd/ttrpc, PROTOCOL.md).

frames      bytes to frames and back, without I/O
errors      gRPC's status codes as exceptions
stream      messages of one stream that wait to be taken
connection  one socket: frames in and out, flow control
service     which method of which object answers which call
server      answers calls
client      makes calls
"""
