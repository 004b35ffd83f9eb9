# SPDX-License-Identifier: MIT
"""D-Bus signatures as annotations.

dbus-next reads a method's annotations as D-Bus signatures; a type checker reads them as types.
Each name here is the one to the first and the other to the second.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Bool = bool
    Double = float
    GpuRows = list[list[object]]
    Numbers = list[int]
    Seconds = dict[str, float]
    ObjectPath = str
    String = str
    StringMap = dict[str, str]
    Strings = list[str]
    UInt32 = int
    UInt64 = int
    JobBegin = list[object]
    JobEnd = list[object]
    ModelRows = list[list[str]]
    LettingGoRows = list[list[str]]
    FiguresRows = list[list[object]]
    JobRows = list[list[object]]
else:
    Bool = "b"
    Double = "d"
    GpuRows = "a(usttt)"
    Numbers = "au"
    Seconds = "a{sd}"
    ObjectPath = "o"
    String = "s"
    StringMap = "a{ss}"
    Strings = "as"
    UInt32 = "u"
    UInt64 = "t"
    JobBegin = "uos"
    JobEnd = "uoss"
    ModelRows = "a(ssos)"
    LettingGoRows = "a(sss)"
    FiguresRows = "a(ssddtus)"
    JobRows = "a(usso)"
