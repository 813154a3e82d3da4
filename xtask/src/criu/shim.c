/* Reads the limits of a process as the owner of its user namespace, where root may not.
 *
 * check_prlimit_permission (kernel/sys.c) asks for CAP_SYS_RESOURCE in the namespace of the process. Root of the
 * host has it there by being root, or by owning the namespace; a root without CAP_SYS_RESOURCE has neither for a
 * computer, whose namespace its first host id owns.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static int owner_of(long pid, unsigned *owner)
{
	char path[64];
	unsigned inside;
	int found;
	snprintf(path, sizeof path, "/proc/%ld/uid_map", pid);
	FILE *map = fopen(path, "re");
	if (!map)
		return 0;
	found = fscanf(map, "%u %u", &inside, owner) == 2;
	fclose(map);
	return found;
}

long syscall(long number, ...)
{
	long a[6], result;
	unsigned owner;
	va_list list;
	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	result = call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_prlimit64 && result == -EPERM && a[0] && owner_of(a[0], &owner) &&
	    call(SYS_setresuid, -1, owner, -1, 0, 0, 0) == 0) {
		result = call(number, a[0], a[1], a[2], a[3], 0, 0);
		call(SYS_setresuid, -1, 0, -1, 0, 0, 0);
	}
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

int prlimit64(int pid, int resource, const void *new, void *old)
{
	return (int)syscall(SYS_prlimit64, (long)pid, (long)resource, new, old);
}

int prlimit(int pid, int resource, const void *new, void *old)
{
	return prlimit64(pid, resource, new, old);
}
