/* SPDX-License-Identifier: MIT */
/*
 * libcuda's checkpoint API without a GPU. Each process that uses CUDA is a file FAKE_CUDA/PID that
 * has its CUprocessState; FAKE_CUDA/log gets a line for each call: its name, the pid, the bytes of
 * its argument and of what that points to.
 *
 * FAKE_CUDA_CODES says what goes wrong: "cuCheckpointProcessLock:12=600,cuInit:0=100" are codes to
 * return, and the code "hang" never returns. FAKE_CUDA_MEET=N: checkpoints and restores wait until
 * N of them are under way.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };
enum { NOT_INITIALIZED = 3, ILLEGAL_STATE = 401, NOT_READY = 600, UNKNOWN = 999 };

static const char *place(char *path, const char *name)
{
	snprintf(path, PATH_MAX, "%s/%s", getenv("FAKE_CUDA"), name);
	return path;
}

static void note(const char *name, int pid, const void *bytes, size_t size, const void *more,
		 size_t more_size)
{
	char path[PATH_MAX], line[4096];
	int length = snprintf(line, sizeof(line), "%s %d ", name, pid);

	for (size_t i = 0; i < size; i++)
		length += sprintf(line + length, "%02x", ((const unsigned char *)bytes)[i]);
	line[length++] = ' ';
	for (size_t i = 0; i < more_size; i++)
		length += sprintf(line + length, "%02x", ((const unsigned char *)more)[i]);
	line[length++] = '\n';
	int file = open(place(path, "log"), O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (write(file, line, length) != length)
		abort();
	close(file);
}

static int ordered(const char *name, int pid)
{
	char key[128];
	const char *codes = getenv("FAKE_CUDA_CODES");
	const char *found;

	snprintf(key, sizeof(key), "%s:%d=", name, pid);
	if (!codes || !(found = strstr(codes, key)))
		return 0;
	found += strlen(key);
	while (strncmp(found, "hang", 4) == 0)
		pause();
	return atoi(found);
}

static int state_of(int pid)
{
	char path[PATH_MAX], name[16], text[2] = "";
	int file, state = -1;

	snprintf(name, sizeof(name), "%d", pid);
	file = open(place(path, name), O_RDONLY);
	if (file >= 0 && read(file, text, 1) == 1)
		state = atoi(text);
	if (file >= 0)
		close(file);
	return state;
}

static int go(const char *name, int pid, int from, int to)
{
	char path[PATH_MAX], number[16], text = '0' + to;
	int code = ordered(name, pid), state = state_of(pid), file;

	if (code)
		return code;
	if (state < 0)
		return NOT_INITIALIZED;
	if (state != from)
		return ILLEGAL_STATE;
	snprintf(number, sizeof(number), "%d", pid);
	file = open(place(path, number), O_WRONLY);
	if (write(file, &text, 1) != 1)
		abort();
	close(file);
	return 0;
}

int cuInit(unsigned flags)
{
	note("cuInit", 0, &flags, sizeof(flags), NULL, 0);
	return ordered("cuInit", 0);
}

int cuGetErrorName(int code, const char **text)
{
	*text = code == NOT_INITIALIZED	 ? "CUDA_ERROR_NOT_INITIALIZED" :
		code == ILLEGAL_STATE	 ? "CUDA_ERROR_ILLEGAL_STATE" :
		code == NOT_READY	 ? "CUDA_ERROR_NOT_READY" :
					   NULL;
	return *text ? 0 : 1;
}

int cuGetErrorString(int code, const char **text)
{
	*text = code == NOT_INITIALIZED	 ? "initialization error" :
		code == ILLEGAL_STATE	 ? "the operation cannot be performed in the present state" :
		code == NOT_READY	 ? "device not ready" :
					   NULL;
	return *text ? 0 : 1;
}

#ifndef TOO_OLD
static int meet(void)
{
	static atomic_int here;
	const char *wanted = getenv("FAKE_CUDA_MEET");

	if (!wanted)
		return 0;
	atomic_fetch_add(&here, 1);
	for (int i = 0; i < 5000 && here < atoi(wanted); i++)
		usleep(1000);
	return here < atoi(wanted);
}

int cuCheckpointProcessGetState(int pid, int *state)
{
	int code = ordered(__func__, pid);

	note(__func__, pid, NULL, 0, NULL, 0);
	if (code)
		return code;
	*state = state_of(pid);
	return *state < 0 ? NOT_INITIALIZED : 0;
}

int cuCheckpointProcessGetRestoreThreadId(int pid, int *tid)
{
	int code = ordered(__func__, pid);

	note(__func__, pid, NULL, 0, NULL, 0);
	*tid = pid + 1;
	return code ? code : state_of(pid) < 0 ? NOT_INITIALIZED : 0;
}

int cuCheckpointProcessLock(int pid, const void *arguments)
{
	note(__func__, pid, arguments, 64, NULL, 0);
	return go(__func__, pid, RUNNING, LOCKED);
}

int cuCheckpointProcessCheckpoint(int pid, const void *arguments)
{
	note(__func__, pid, arguments, 64, NULL, 0);
	return meet() ? UNKNOWN : go(__func__, pid, LOCKED, CHECKPOINTED);
}

int cuCheckpointProcessRestore(int pid, const void *arguments)
{
	const void *pairs;
	unsigned count;

	memcpy(&pairs, arguments, sizeof(pairs));
	memcpy(&count, (const char *)arguments + sizeof(pairs), sizeof(count));
	note(__func__, pid, arguments, 64, pairs, count * 32);
	return meet() ? UNKNOWN : go(__func__, pid, CHECKPOINTED, LOCKED);
}

int cuCheckpointProcessUnlock(int pid, const void *arguments)
{
	note(__func__, pid, arguments, 64, NULL, 0);
	return go(__func__, pid, LOCKED, RUNNING);
}
#endif
