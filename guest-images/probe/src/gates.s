# How ring 3 is interrupted and how it waits. Interrupts are off in all of this but for the one `sti; hlt`.
#
# Each vCPU's ring-0 stack is one page, which begins with the vCPU's `Gate` (gate.rs): `rsp & -4096` finds it.

.set GATE_WOKEN, 0
.set GATE_TIMER, 4
.set GATE_DEVICE, 8
.set GATE_CALLS, 12

.section .boot, "ax", @progbits
.code64

# The only ud2 that is no mistake: ring 3 calls it to wait for an interrupt (an `int` is not available everywhere).
.global idle_gate
idle_gate:
    ud2
    ret

# And this one asks for a CPUID leaf (eax, ecx to eax, ebx, ecx, edx) in ring 0: where ring 3 runs without hardware
# virtualization, a cpuid of its own is answered by the host's processor instead of by the VMM.
.global cpuid_gate
cpuid_gate:
    ud2
    ret

# #UD. From idle_gate: waits for an interrupt unless one has come since the caller last looked.
.global invalid_opcode_entry
invalid_opcode_entry:
    cmp qword ptr [rsp], offset idle_gate
    jne 1f
    push rax
    mov rax, rsp
    and rax, -4096
    add qword ptr [rsp + 8], 2
    cmp dword ptr [rax + GATE_WOKEN], 0
    jne awake
    sti
halt_instruction:
    hlt
awake:
    cli
    mov dword ptr [rax + GATE_WOKEN], 0
    pop rax
    iretq
1:  cmp qword ptr [rsp], offset cpuid_gate
    jne exception_6
    add qword ptr [rsp], 2
    cpuid
    iretq

.macro interrupt_entry name, counter
.global \name
\name:
    push rax
    mov rax, rsp
    and rax, -4096
    inc dword ptr [rax + \counter]
    jmp interrupted
.endm

interrupt_entry timer_entry, GATE_TIMER
interrupt_entry device_entry, GATE_DEVICE
interrupt_entry call_entry, GATE_CALLS

interrupted:
    mov dword ptr [rax + GATE_WOKEN], 1
    # An interrupt between `sti` and `hlt` must not be slept through, whether or not `sti` shadows the hlt here.
    cmp qword ptr [rsp + 8], offset halt_instruction
    jne 1f
    mov qword ptr [rsp + 8], offset awake
1:  mov eax, 0xfee000b0                             # end of interrupt
    mov dword ptr [rax], 0
    pop rax
.global spurious_entry
spurious_entry:
    iretq

# Exceptions 0 to 31, 16 bytes each: number and error code go to `fault` in ring 3, on a stack of its own.
.balign 16
.global exception_entries
exception_entries:
.set vector, 0
.rept 32
    .balign 16
    .if vector == 6
exception_6:
    .endif
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21)
    push 0
    .endif
    push vector
    jmp exception
    .set vector, vector + 1
.endr

exception:
    pop rdi                                         # vector
    pop rsi                                         # error code
    mov rdx, [rsp]                                  # rip
    mov rcx, cr2
    push USER_DATA
    push offset FAULT_STACK + USER_STACK - 8
    push 2
    push USER_CODE
    push offset fault
    iretq
