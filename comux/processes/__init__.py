"""Decoders in processes of their own, for programs whose interpreter is busy: same contract, same results.

Lives here: ``DecodeProcesses``, which starts them, and ``RemoteDecoder``, a ``Decoder`` whose work one of them does.
May import: ``decoders``, ``lifecycle`` and the nouns. Must never know: sources, topics, engines, batches.

**Problem.** A thread that decodes gives the interpreter up and wants it back several times a picture. Beside a model
that computes in Python each time costs up to a switch interval (5 ms), and a camera falls behind.

**Way of a packet.** The source's thread writes it into memory it shares with the process and sends one short message;
the process decodes it, converts its picture straight into a slot that the source's thread gave it, and answers with the
outcomes. So the thread waits for the interpreter once, and everything else of a source (books, lag rule, states) stays
what it is.

**Memory.** Segments are anonymous (``memfd``): they have no name, and are gone when both sides have let go or died.
Slots belong to the program (``slots``): it alone lends them, so the death of a process loses none.

**Death.** The other end of a socket is closed by the kernel, whoever dies and however. A decoder whose process is gone
raises ``DecoderLostError``; the source drops what was in it and asks for another one. A process whose program is gone
ends.
"""

from __future__ import annotations

from comux.processes.moving import Mover
from comux.processes.remote import RemoteDecoder, RemotePicture
from comux.processes.workers import DecodeProcesses, decodes_apart

__all__ = ["DecodeProcesses", "Mover", "RemoteDecoder", "RemotePicture", "decodes_apart"]
