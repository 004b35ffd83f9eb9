/* SPDX-License-Identifier: MIT */
/*
 * NVML without a GPU. Each call reads the file FAKE_NVML, of lines such as
 *
 *   gpu 81559 551 0 NVIDIA H100 80GB HBM3     total, reserved, used by nobody that is seen
 *   process 0 4711 1024                       GPU, pid, its memory ("-": not told)
 *   graphics 0 4712 16                        the same, of a process that draws
 *   running 0 40960 sleep infinity            so much for each process with this command line
 *   fail nvmlInit_v2 9                        the code that a function returns
 *   fail nvmlDeviceGetMemoryInfo_v2 15 1      the same, for one GPU only
 *
 * Sizes are in MiB. GPUs are numbered in their order.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, INSUFFICIENT_SIZE = 7 };
enum { MAX_PROCESSES = 4096 };

struct memory {
	unsigned version;
	unsigned long long total, reserved, free, used;
};
struct process {
	unsigned pid;
	unsigned long long used;
	unsigned gpu_instance, compute_instance;
};

static int initialized;

/* The next line that begins with `word`: what follows, or NULL at the end. */
static char *next(FILE *file, const char *word, char *line)
{
	size_t length = strlen(word);

	while (fgets(line, LINE_MAX, file)) {
		line[strcspn(line, "\n")] = 0;
		if (strncmp(line, word, length) == 0 && line[length] == ' ')
			return line + length + 1;
	}
	return NULL;
}

static FILE *order(void)
{
	FILE *file = fopen(getenv("FAKE_NVML"), "re");

	if (!file)
		abort();
	return file;
}

static unsigned number_of(const void *device)
{
	return (unsigned)(size_t)device - 1;
}

static int ordered(const char *function, const void *device)
{
	char line[LINE_MAX], name[128], *rest;
	FILE *file = order();
	int code, found = strcmp(function, "nvmlInit_v2") && !initialized ? UNINITIALIZED : SUCCESS;

	while ((rest = next(file, "fail", line))) {
		unsigned gpu = number_of(device);

		if (sscanf(rest, "%127s %d %u", name, &code, &gpu) >= 2 && gpu == number_of(device) &&
		    strcmp(name, function) == 0)
			found = code;
	}
	fclose(file);
	/* As when the driver was exchanged: nothing goes on before it is initialized anew. */
	if (found == UNINITIALIZED)
		initialized = 0;
	return found;
}

static unsigned long long bytes(const char *text)
{
	return strcmp(text, "-") ? strtoull(text, NULL, 10) << 20 : ULLONG_MAX;
}

static int command_has(const char *pid, const char *text)
{
	char path[PATH_MAX], line[LINE_MAX] = "";
	FILE *file;
	size_t length;

	snprintf(path, sizeof(path), "/proc/%s/cmdline", pid);
	if (!(file = fopen(path, "re")))
		return 0;
	length = fread(line, 1, sizeof(line) - 1, file);
	fclose(file);
	for (size_t i = 0; i + 1 < length; i++)
		if (!line[i])
			line[i] = ' ';
	return strstr(line, text) != NULL;
}

/* All processes of the kind on the GPU. */
static unsigned collect(unsigned gpu, const char *kind, struct process *found)
{
	char line[LINE_MAX], size[64], *rest;
	unsigned count = 0, number, pid;
	FILE *file = order();
	int text;

	while ((rest = next(file, kind, line)))
		if (sscanf(rest, "%u %u %63s", &number, &pid, size) == 3 && number == gpu)
			found[count++] = (struct process){ pid, bytes(size), -1u, -1u };
	rewind(file);
	while (strcmp(kind, "process") == 0 && (rest = next(file, "running", line))) {
		struct dirent *entry;
		DIR *directory;

		if (sscanf(rest, "%u %63s %n", &number, size, &text) != 2 || number != gpu)
			continue;
		directory = opendir("/proc");
		while ((entry = readdir(directory)))
			if (atoi(entry->d_name) && command_has(entry->d_name, rest + text))
				found[count++] = (struct process){ atoi(entry->d_name), bytes(size),
								   -1u, -1u };
		closedir(directory);
	}
	fclose(file);
	return count;
}

/* The GPU's line, without its first word; NULL where there is no such GPU. */
static char *gpu_line(unsigned gpu, char *line)
{
	FILE *file = order();
	char *rest;

	do
		rest = next(file, "gpu", line);
	while (rest && gpu--);
	fclose(file);
	return rest;
}

int nvmlInit_v2(void)
{
	int code = ordered(__func__, NULL);

	initialized += code == SUCCESS;
	return code;
}

int nvmlShutdown(void)
{
	return initialized ? initialized--, SUCCESS : UNINITIALIZED;
}

const char *nvmlErrorString(int code)
{
	return code == UNINITIALIZED ? "Uninitialized" :
	       code == 9	     ? "Driver Not Loaded" :
	       code == 15	     ? "GPU is lost" :
				       "Unknown Error";
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
	char line[LINE_MAX];

	for (*count = 0; gpu_line(*count, line); ++*count)
		;
	return ordered(__func__, NULL);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **device)
{
	char line[LINE_MAX];

	*device = (void *)(size_t)(number + 1);
	return gpu_line(number, line) ? ordered(__func__, *device) : INVALID_ARGUMENT;
}

int nvmlDeviceGetName(const void *device, char *name, unsigned length)
{
	char line[LINE_MAX];
	int text = 0;

	sscanf(gpu_line(number_of(device), line), "%*u %*u %*u %n", &text);
	snprintf(name, length, "%s", gpu_line(number_of(device), line) + text);
	return ordered(__func__, device);
}

int nvmlDeviceGetMemoryInfo_v2(const void *device, struct memory *memory)
{
	static struct process found[MAX_PROCESSES];
	unsigned long long total, reserved, used;
	char line[LINE_MAX];
	unsigned count;

	if (memory->version != (sizeof(*memory) | 2 << 24))
		return 25; /* NVML_ERROR_ARGUMENT_VERSION_MISMATCH */
	sscanf(gpu_line(number_of(device), line), "%llu %llu %llu", &total, &reserved, &used);
	memory->total = total << 20;
	memory->reserved = reserved << 20;
	memory->used = used << 20;
	for (int kind = 0; kind < 2; kind++) {
		count = collect(number_of(device), kind ? "process" : "graphics", found);
		while (count--)
			memory->used += found[count].used == ULLONG_MAX ? 0 : found[count].used;
	}
	memory->free = memory->total - memory->reserved - memory->used;
	return ordered(__func__, device);
}

static int running(const void *device, const char *kind, unsigned *room, struct process *infos)
{
	static struct process found[MAX_PROCESSES];
	unsigned count = collect(number_of(device), kind, found), had = *room;

	*room = count;
	if (count > had)
		return INSUFFICIENT_SIZE;
	memcpy(infos, found, count * sizeof(*infos));
	return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const void *device, unsigned *room,
					    struct process *infos)
{
	int code = ordered(__func__, device);

	return code ? code : running(device, "process", room, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(const void *device, unsigned *room,
					     struct process *infos)
{
	int code = ordered(__func__, device);

	return code ? code : running(device, "graphics", room, infos);
}
