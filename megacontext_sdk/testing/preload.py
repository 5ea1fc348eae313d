"""A library that fails the N-th write or flush inside a native engine, made when it is needed.

For stores whose files are written by code that takes no `Disk`. It is loaded in front of the C
library of a victim and counts only files below a folder; reading is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SOURCE", "build_preload"]

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long nth, calls, retried;
static int code, for_ever, failed_sync = -1;

void megacontext_arm(const char *path, long n, int error, int ever) {
    nth = n; code = error; for_ever = ever; calls = retried = 0; failed_sync = -1;
    snprintf(folder, sizeof folder, "%s", path);
}
long megacontext_calls(void) { return calls; }
long megacontext_retried(void) { return retried; }

static int fails(int fd, int is_sync) {
    char name[64], path[4096];
    int before = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = folder[0] ? readlink(name, path, sizeof path - 1) : -1;
    errno = before;
    if (n < 0) return 0;
    path[n] = 0;
    if (strncmp(path, folder, strlen(folder))) return 0;
    long at = __sync_add_and_fetch(&calls, 1);
    if (is_sync && fd == failed_sync) retried++;
    if (at != nth && !(for_ever && nth && at > nth)) return 0;
    if (is_sync && code) failed_sync = fd;
    errno = code;
    return 1;
}
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    if (fails(fd, 0)) { if (code) return -1; size = size / 2 + 1; }
    return REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    if (fails(fd, 0)) { if (code) return -1; size = size / 2 + 1; }
    return REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (fails(fd, 0)) { if (code) return -1; size = size / 2 + 1; }
    return REAL(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    if (fails(fd, 0)) { if (code) return -1; count = 1; }
    return REAL(writev)(fd, pieces, count);
}
int close(int fd) {
    if (fd == failed_sync) failed_sync = -1;
    return REAL(close)(fd);
}
int fsync(int fd) { return fails(fd, 1) && code ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails(fd, 1) && code ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) {
    return fails(fd, 0) && code ? -1 : REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    return fails(fd, 0) && code ? -1 : REAL(ftruncate64)(fd, size);
}
"""
"""`megacontext_arm(folder, n, errno, for_ever)` starts the count; errno 0 is one short write."""


def build_preload(folder: Path) -> Path | None:
    """Compile the library into a folder; return its path, None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = folder / "preload.c", folder / "preload.so"
    source.write_text(SOURCE, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own source
    return library if done.returncode == 0 else None
