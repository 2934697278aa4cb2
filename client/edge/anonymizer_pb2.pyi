from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("model_sha256", "working_px", "history_frames", "stride_frames", "streams", "max_streams", "version")
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    WORKING_PX_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model_sha256: str
    working_px: int
    history_frames: int
    stride_frames: int
    streams: int
    max_streams: int
    version: str
    def __init__(self, model_sha256: _Optional[str] = ..., working_px: _Optional[int] = ..., history_frames: _Optional[int] = ..., stride_frames: _Optional[int] = ..., streams: _Optional[int] = ..., max_streams: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("number", "height", "width", "rgb", "lost")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    number: int
    height: int
    width: int
    rgb: bytes
    lost: bool
    def __init__(self, number: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., rgb: _Optional[bytes] = ..., lost: bool = ...) -> None: ...

class AnonymizedFrame(_message.Message):
    __slots__ = ("number", "height", "width", "rgb", "black", "model_sha256")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    BLACK_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    number: int
    height: int
    width: int
    rgb: bytes
    black: str
    model_sha256: str
    def __init__(self, number: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., rgb: _Optional[bytes] = ..., black: _Optional[str] = ..., model_sha256: _Optional[str] = ...) -> None: ...
