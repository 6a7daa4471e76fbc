# From the VMM's entry to ring 3: all that has to run in ring 0, but for the gates in gates.s.
#
# Plain integer instructions only: where the hypervisor emulates ring 0 it does about a million instructions a second,
# and some others (cmpxchg16b, fxsave, int3) make it spin for ever. Tables are static data, so that nothing is computed
# here that ring 3 or the assembler can compute.
#
# Registers throughout: edi = address of the PVH start info, ebp = the vCPU's index (its APIC ID).

.set CODE64, 0x08
.set DATA, 0x10
.set USER_DATA, 0x1b
.set USER_CODE, 0x23
.set CODE32, 0x28
.set FIRST_TSS, 0x30
.set TSS_STRIDE, 1024
.set KERNEL_STACK, 4096
.set USER_STACK, 32768
.set VCPUS_MAX, 16

# The entry point, for loaders (Xen public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY). 64 bits wide: QEMU reads all of them.
.section .note.pvh, "a", @note
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

# 4 GiB of identity, in pages of 2 MiB that ring 3 may read and write. Accessed and dirty are set beforehand: nothing
# looks at them, and a hypervisor that shadows these tables need not trap their update.
.section .boot.tables, "aw", @progbits
.balign 4096
page_map_level4:
    .quad page_directory_pointers + 0x27
    .zero 511 * 8
page_directory_pointers:
    .quad page_directories + 0x27
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .zero 508 * 8
page_directories:
    .set address, 0
    .rept 2048
    .quad address + 0xe7
    .set address, address + 0x200000
    .endr

.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # CODE64
    .quad 0x00cf93000000ffff    # DATA
    .quad 0x00cff3000000ffff    # USER_DATA
    .quad 0x00affb000000ffff    # USER_CODE
    .quad 0x00cf9b000000ffff    # CODE32
    .zero VCPUS_MAX * 16        # a TSS for each vCPU, filled in by the vCPU
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 16
idt_pointer:
    .word 256 * 16 - 1
    .quad IDT

.section .boot, "ax", @progbits

# PVH entry (Xen docs/misc/pvh.pandoc): 32-bit protected mode, flat segments, no paging, ebx = start info.
.code32
.global pvh_start
pvh_start:
    mov edi, ebx
    xor ebp, ebp
    # Firmware may have left the old interrupt controller on; its vectors would hit the table before it is filled.
    mov al, 0xff
    out 0x21, al
    out 0xa1, al

enter_long_mode:
    lgdt [gdt_pointer]
    mov eax, offset page_map_level4
    mov cr3, eax
    mov eax, 0x620              # PAE, OSFXSR, OSXMMEXCPT: Rust code for the host uses SSE2
    mov cr4, eax
    mov ecx, 0xc0000080         # EFER
    xor edx, edx
    mov eax, 0x100              # LME
    wrmsr
    mov eax, 0x80010033         # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    .byte 0xea                  # far jump to CODE64:long_mode
    .long long_mode
    .word CODE64

.code64
long_mode:
    # The vCPU's own task state, whose contents ring 3 fills in: stack for ring 0, permission for ports.
    mov eax, ebp
    shl eax, 10                 # TSS_STRIDE
    add eax, offset TASK_STATES
    mov ecx, ebp
    shl ecx, 4
    add ecx, offset gdt + FIRST_TSS
    mov word ptr [rcx], TSS_STRIDE - 1
    mov [rcx + 2], ax
    shr eax, 16
    mov [rcx + 4], al
    mov byte ptr [rcx + 5], 0x89
    mov [rcx + 7], ah
    sub ecx, offset gdt
    ltr cx
    lidt [idt_pointer]
    # To ring 3, interrupts on: nothing is set up yet that could raise one.
    mov ecx, ebp
    inc ecx
    mov eax, ecx
    shl eax, 12                 # KERNEL_STACK
    add eax, offset KERNEL_STACKS
    mov esp, eax
    shl ecx, 15                 # USER_STACK
    add ecx, offset USER_STACKS + USER_STACK - 8    # the first one's is twice as long
    push USER_DATA
    push rcx
    push 0x202
    push USER_CODE
    push offset vcpu_main
    mov esi, ebp
    iretq

# An application processor starts here in real mode, copied to a page below 1 MiB whose number is the SIPI's vector
# (Intel SDM volume 3, section 10.4). cs:0 is the start of the copy.
.code16
.global ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    .byte 0x2e, 0x66, 0x0f, 0x01, 0x16              # lgdt cs:[trampoline_gdt_pointer], 32-bit base
    .word trampoline_gdt_pointer - ap_trampoline
    mov eax, 0x11                                   # ET, PE
    mov cr0, eax
    .byte 0x66, 0xea                                # far jump to CODE32:ap_protected
    .long ap_protected
    .word CODE32
.balign 4
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:

.code32
ap_protected:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov ebp, [0xfee00020]                           # the local APIC's ID
    shr ebp, 24
    cmp ebp, VCPUS_MAX
    jb enter_long_mode
1:  hlt                                             # one more than there are stacks for
    jmp 1b
.code64
